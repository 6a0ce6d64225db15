"""mlflow"""
