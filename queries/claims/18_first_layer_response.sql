-- about: weights
-- needs: first-layer responses of pairs
with per_perturbation as (
    select
        perturbation,
        median(ratio) as ratio
    from answer
    group by perturbation
)

select
    'median ratio: '
    || string_agg(format('{} {:.3f}', perturbation, ratio), ', ' order by perturbation) as shows,
    bool_and(ratio < 1) as holds
from per_perturbation
