"""The OpenAI dialect: schemas, and pure translations between them and engine requests."""
