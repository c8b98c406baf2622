-- about: weights
-- needs: robust and standard models
select
    max(sparsity) filter (where kind = 'robust') as robust,
    max(sparsity) filter (where kind = 'standard') as standard,
    format('robust {:.2f} %, standard {:.2f} %', 100 * robust, 100 * standard) as shows,
    robust < standard as holds
from answer
where dataset = 'all'
