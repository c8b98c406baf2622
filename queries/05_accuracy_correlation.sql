-- title: Clean and robust accuracy
-- finding: Among robust models, clean and AutoAttack accuracy rise together (Spearman 0.71 / 0.46 / 1.0).
-- paper: correlation.ipynb cell 12
-- expect: positive
with correlated as (
    select
        dataset,
        count(*) as models,
        spearman(list(clean_acc), list(autoattack_acc)) as spearman
    from study_models
    where robust and clean_acc is not null and autoattack_acc is not null
    group by all
    having count(*) > 2
)

select
    c.dataset,
    c.models,
    c.spearman,
    p.value as published,
    c.spearman - p.value as difference,
    abs(c.spearman - p.value) <= p.precision as within
from correlated as c
left join paper as p on p.finding = 'accuracy_correlation' and c.dataset = p.dataset
order by c.dataset
