"""The only modules that know Ray and MLflow, which they import inside functions: both are slow."""
