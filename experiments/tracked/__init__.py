"""What a person looks at in MLflow: the files of a run and of a comparison."""
