"""Workers die, hang and lose their cable while they serve: are tokens lost, and how long is the pause?"""
