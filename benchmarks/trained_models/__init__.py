"""Dense models that the workflow trained, with their data, behind one interface: see ``interface.TrainedModel``."""
