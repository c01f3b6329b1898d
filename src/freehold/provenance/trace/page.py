"""placeholder"""
def page(r): return ""
