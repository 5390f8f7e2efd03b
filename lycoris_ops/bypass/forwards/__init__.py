"""What runs in each pass: a module for each form of a change, which defines FORMS and FORWARD."""
