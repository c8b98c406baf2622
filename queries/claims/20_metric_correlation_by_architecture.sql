-- about: weights
-- needs: two architectures with three robust models each
select
    format('sparsity: {} positive, {} negative', count_if(spearman > 0), count_if(spearman < 0)) as shows,
    if(count(spearman) > 1, count_if(spearman > 0) > 0 and count_if(spearman < 0) > 0, null) as holds
from answer
where metric = 'sparsity'
