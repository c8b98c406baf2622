-- title: The same network on CIFAR-10 and CIFAR-100
-- finding: The same network has fewer sparse filters when trained on CIFAR-100 (15 of 17).
-- paper: sparsity.ipynb cell 17
-- expect: change below 0 in most rows
-- note: Rice2020Overfitting compares two architectures (same_architecture is false), also in the paper.
with published as (
    select
        model_id,
        value::bigint as n_sparse
    from paper
    where finding = 'sparsity_by_model' and metric = 'n_sparse'
)

select
    c10.network,
    if(c10.robust, 'robust', 'standard') as kind,
    c10.architecture = c100.architecture as same_architecture,
    c10.sparsity as sparsity_cifar10,
    c100.sparsity as sparsity_cifar100,
    c10.n_sparse as n_sparse_cifar10,
    c100.n_sparse as n_sparse_cifar100,
    c100.n_sparse - c10.n_sparse as change,
    p100.n_sparse - p10.n_sparse as published,
    change - published as difference,
    c10.n_sparse = p10.n_sparse and c100.n_sparse = p100.n_sparse as within
from study_models as c10
inner join study_models as c100 on c10.network = c100.network and c10.robust = c100.robust
left join published as p10 on c10.model_id = p10.model_id
left join published as p100 on c100.model_id = p100.model_id
where
    c10.dataset = 'cifar10'
    and c100.dataset = 'cifar100'
    and c10.n_sparse is not null
    and c100.n_sparse is not null
order by c10.robust, c10.network
