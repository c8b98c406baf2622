-- about: weights
-- needs: the same network on CIFAR-10 and CIFAR-100
select
    format('fewer on CIFAR-100 for {} of {}', count_if(change < 0), count(*)) as shows,
    if(count(*) > 0, 2 * count_if(change < 0) > count(*), null) as holds
from answer
