"""A static site from committed leaderboards: pages of boards, interpreters and fooled models. No torch."""
