-- about: weights
-- needs: CIFAR pairs
select
    string_agg(format('{}: depth bin {}', dataset, depth_bin), ', ' order by dataset) as shows,
    bool_and(region <> 'between') as holds
from answer
where place = 1 and dataset like 'cifar%'
