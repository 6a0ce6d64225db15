"""The TensorBoard sink: event files that TensorBoard, its data server and its readers accept."""
