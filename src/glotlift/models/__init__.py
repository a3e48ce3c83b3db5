"""The ground floor: loading, the forward pass, label words."""
