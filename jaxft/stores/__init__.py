"""Object stores: data and models read from `s3://` and `gs://`, and a run's folder that is kept there."""
