"""From a load request to finished batches."""
