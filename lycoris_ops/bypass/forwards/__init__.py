"""What runs in each pass. Each module defines FORMS, the forms it is for, and FORWARD, their forward pass."""
