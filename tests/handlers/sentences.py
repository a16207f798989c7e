"""Real sentences of many kinds, to measure on how far a cheaper model is from the exact one."""

SENTENCES = [
    "The house is quiet.",
    "Rain.",
    "How do I reset my password?",
    "Nobody is at home, and the garden gate stands open in the wind.",
    "The quarterly report shows a rise in revenue of four per cent, mostly from subscriptions in Europe.",
    "A man is playing a guitar on stage.",
    "Der Zug nach Hamburg hat zwanzig Minuten Verspätung.",
    "TypeError: unsupported operand type(s) for +: 'int' and 'str'",
    "Two dogs run across a wet field after a red ball.",
    "She could not help thinking that the evening had been very long.",
    "Take one tablet twice a day with water, and see your doctor if the pain has not gone after three days.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "Is there a vegetarian restaurant near the station that is open on Sundays?",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful property "
    "of some one or other of their daughters.",
]
