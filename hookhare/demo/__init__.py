"""`hookhare demo`: the whole path, from a publish to a verified webhook, with receivers that misbehave."""
