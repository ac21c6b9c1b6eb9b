"""Tables, figures and the page of a report from stored counts, without torch."""
