"""Networks: built, loaded, asked, explained. The room that imports torch."""
