-- about: weights
-- needs: robust and standard models
select
    max(ratio) filter (where kind = 'robust') as robust,
    max(ratio) filter (where kind = 'standard') as standard,
    format('first component: robust {:.2f} %, standard {:.2f} %', 100 * robust, 100 * standard) as shows,
    robust < standard as holds
from answer
where component = 0
