-- about: weights
-- needs: two models with twins that had no extra data
select
    string_agg(format('{} x {:.4g}', extra_network, ratio), ', ' order by dataset, extra_network) as shows,
    if(count(ratio) > 1, min(ratio) < 1 and max(ratio) > 1, null) as holds
from answer
