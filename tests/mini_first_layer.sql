-- title: First-layer responses of every pair
-- finding: What builder/compare/mini_first_layer.csv holds of the mini release.
select
    p.architecture,
    f.perturbation,
    max(f.response_pre) filter (where f.model_id = p.robust_model_id) as robust_pre,
    max(f.response_post) filter (where f.model_id = p.robust_model_id) as robust_post,
    max(f.response_pre) filter (where f.model_id = p.standard_model_id) as standard_pre,
    max(f.response_post) filter (where f.model_id = p.standard_model_id) as standard_post
from pairs as p
inner join first_layer as f on f.model_id in (p.robust_model_id, p.standard_model_id)
where f.out_channel is null
group by p.architecture, f.perturbation
order by p.architecture, f.perturbation
