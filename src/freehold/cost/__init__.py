"""What an exchange cost: prices with their snapshots, and the row of usage that an exchange becomes.

Money is integer nano-dollars (10^-9 USD) everywhere. The room knows tokens, seconds and prices; no gateway, no HTTP and
no key. Public face: `prices.PriceBook`, `prices.Price`, `meter.cost_of`, `report`.
"""
