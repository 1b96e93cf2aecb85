"""What training leaves on disk and how it is followed; knows no Ray and no MLflow."""
