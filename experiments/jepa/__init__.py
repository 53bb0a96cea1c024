"""Does an encoder learn more when it also predicts features (JEPA), and do its features collapse?"""
