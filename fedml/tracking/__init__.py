"""A run's folder into MLflow. The only folder that imports mlflow."""
