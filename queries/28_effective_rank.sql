-- title: Effective rank of filters
-- finding: Robust filters are of higher effective rank than standard ones (70 of 71 pairs).
-- origin: ours
-- paper: none; computed from pca_dict.cpkl. Low rank and sparsity: Langenberg et al., 2019
-- expect: robust above standard
-- note: exp of the natural entropy of the nine explained variance ratios of a model's scaled, non-sparse,
--       folded filters: 1 where one direction holds all variance, 9 where all hold the same. Of 3x3
--       filters, not of the weight matrices of layers, whose rank is another question.
with ranks as (
    select
        basis,
        exp(entropy(list(explained_variance_ratio order by component))) as effective_rank
    from pca
    where weights = 'folded'
    group by basis
    having count(explained_variance_ratio) = 9 and sum(explained_variance_ratio) > 0
)

select
    p.dataset,
    p.architecture,
    p.robust_model_id,
    p.standard_model_id,
    s.effective_rank as standard_rank,
    r.effective_rank as robust_rank,
    r.effective_rank - s.effective_rank as difference
from study_pairs as p
inner join ranks as r on p.robust_model_id = r.basis
inner join ranks as s on p.standard_model_id = s.basis
order by p.dataset, p.robust_model_id
