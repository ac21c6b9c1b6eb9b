"""The data sets of the field, one file each: `imagenet_r.py` holds the `DataSet` named `imagenet-r`."""
