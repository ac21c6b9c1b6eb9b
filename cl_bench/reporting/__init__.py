"""From stored counts to tables, figures and a page, without torch."""
