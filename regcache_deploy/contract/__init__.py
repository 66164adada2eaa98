"""Never slower, never worse: which file to deploy, under a budget of accuracy and of speed."""
