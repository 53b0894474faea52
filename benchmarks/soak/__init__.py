"""Workers join, leave and die for a long time: does anything grow, and is anything left over?"""
