"""The pages of 09_app.py; nothing else imports Streamlit."""
