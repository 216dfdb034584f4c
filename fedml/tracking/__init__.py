"""Delivers a run's folder to MLflow. The only folder that imports mlflow."""
