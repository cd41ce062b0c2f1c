"""The pages of the app, each with a function `show`; app.main puts them behind one navigation."""
