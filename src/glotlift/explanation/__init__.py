"""Inside the model: logit lens and cross-lingual geometry."""
