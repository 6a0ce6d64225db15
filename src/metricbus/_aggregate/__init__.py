"""_aggregate"""
