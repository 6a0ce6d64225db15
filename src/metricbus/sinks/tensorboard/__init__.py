"""tensorboard"""
