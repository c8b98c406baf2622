-- about: weights
-- needs: filters
select
    'first direction: ' || string_agg(format('{} {:.4f}', kind, cosine), ', ' order by kind) as shows,
    bool_and(cosine > 0.9) as holds
from answer
where component = 0
