"""`python -m cloud_inference`."""

from cloud_inference.cli import main

if __name__ == "__main__":
    main()
