"""Systems and forces as files: read without running code, and the model they name found again."""
