-- about: models
-- needs: pairs with known clean and AutoAttack accuracies
with per_dataset as (
    select
        dataset,
        max(accuracy) filter (where kind = 'standard') as standard,
        max(accuracy) filter (where kind = 'robust' and metric = 'clean_acc') as robust,
        max(accuracy) filter (where kind = 'robust' and metric = 'autoattack_acc') as attacked
    from answer
    group by dataset
)

select
    string_agg(
        format('{} {:.2f} > {:.2f} > {:.2f}', dataset, standard, robust, attacked), ', ' order by dataset
    )
        as shows,
    bool_and(standard > robust and robust > attacked) as holds
from per_dataset
