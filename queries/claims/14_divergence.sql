-- about: weights
-- needs: pairs on two data sets
select
    string_agg(format('{} {:.4f}', dataset, divergence), ', ' order by dataset) as shows,
    if(
        count(*) > 1,
        list(divergence order by dataset) = list(divergence order by divergence desc),
        null
    ) as holds
from answer
where reading = 'pairs'
