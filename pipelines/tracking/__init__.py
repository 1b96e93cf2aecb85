"""MLflow: runs, their buffer, the registry. The only importer of mlflow."""
