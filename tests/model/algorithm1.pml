/* Algorithm 1 of the paper (§4.2.2), as printed, on the chain
 *
 *      C ── A ── B ── S        C client, S server, A and B middleboxes
 *              N               N a spare, in no chain yet
 *
 * What the paper leaves open is filled in the way that suits it best: the network keeps the order
 * between two hosts and loses nothing (LOSSES 0), each message names both signaling endpoints, and
 * a refused host asks whoever is its left neighbour by then. MENDED_COUNT mends the first gap
 * found, so that the others show. docs/model.md tells what each variant finds.
 */
#ifndef LOSSES
#define LOSSES 0
#endif
#define TRIES 3 /* requests a host sends before it says "refused" */

#define C 0
#define A 1
#define B 2
#define S 3
#define N 4
#define HOSTS 5
#define NONE 7
#define LETTER(h) (h == C -> 'C' : (h == A -> 'A' : (h == B -> 'B' : (h == S -> 'S' : 'N'))))

mtype = { request, approve, reject, refuse, update_syn, update_synack, update_ack, close };
mtype = { unused, insert, removal };
mtype = { waiting, asked, refused, done };

chan wire[HOSTS * HOSTS] = [4] of { mtype, byte, byte, byte }; /* what, change, left, right end */

#define CHANGES 2
mtype kind[CHANGES] = unused;
mtype fate[CHANGES] = waiting;
byte subject[CHANGES]; /* who triggers: left end of an insertion, middlebox of a removal */
byte tries[CHANGES];

byte left[HOSTS] = NONE;
byte right[HOSTS] = NONE;
byte pending[HOSTS];
byte busy[HOSTS]; /* the changes a host has a part in, one bit each: nobody's variable, only seen */
byte losses = LOSSES;

#define SEND(to, what) \
    assert(nfull(wire[me * HOSTS + to])); wire[me * HOSTS + to]!what, c, l, r

inline begin() {
    busy[l] = busy[l] | (1 << c);
    busy[r] = busy[r] | (1 << c);
    if
    :: kind[c] == insert -> busy[N] = busy[N] | (1 << c)
    :: else -> busy[subject[c]] = busy[subject[c]] | (1 << c)
    fi
#ifdef NO_OVERLAP
    /* A host has a part in one change at a time. */
    assert(busy[C] != 3 && busy[A] != 3 && busy[B] != 3 && busy[S] != 3 && busy[N] != 3)
#endif
}

inline finish() {
    for (from : 0 .. HOSTS - 1) {
        busy[from] = busy[from] & ~(1 << c)
    }
}

inline raise() { pending[me]++ }

inline lower() {
    assert(pending[me] > 0); /* pending is a counter, not a debt */
    pending[me]--
}

/* The left endpoint connects to its new right: the spare, or the right endpoint. */
inline connect() {
    begin();
    if
    :: kind[c] == insert -> SEND(N, update_syn)
    :: else -> SEND(r, update_syn)
    fi
}

inline trigger(change) {
    c = change;
    raise();
    fate[c] = asked;
    tries[c]++;
    r = right[me];
    if
    :: kind[c] == insert -> l = me; connect()
    :: else -> l = left[me]; SEND(l, request)
    fi
}

inline turned_down() {
    if
    :: tries[c] < TRIES -> fate[c] = waiting /* backs off; pending stays raised */
    :: else -> fate[c] = refused; lower()
    fi
}

inline handle() {
    printf("%c -> %c  %e of change %d\n", LETTER(from), LETTER(me), what, c + 1);
    if
    :: what == request && pending[me] > 0 -> SEND(from, reject)
    :: what == request && pending[me] == 0 -> raise(); connect(); SEND(from, approve)
    :: what == reject ->
        turned_down()
    :: what == approve /* nothing */
#ifdef REFUSE_BUSY
    :: what == update_syn && pending[me] > 0 -> SEND(from, refuse)
    :: what == refuse && me == N -> lower(); SEND(l, refuse)
    :: what == refuse && me != N ->
        finish();
        if
        :: kind[c] == insert -> turned_down()
        :: else -> lower(); SEND(subject[c], reject)
        fi
    :: what == update_syn && pending[me] == 0 ->
#else
    :: what == update_syn ->
#endif
        raise();
        left[me] = from;
        if
        :: me == N -> right[me] = r; SEND(r, update_syn)
        :: else -> SEND(from, update_synack)
        fi
    :: what == update_synack && me == N ->
#ifndef MENDED_COUNT
        lower();
#endif
        SEND(l, update_synack)
    :: what == update_synack && me != N ->
        lower();
        right[me] = from;
        fate[c] = done;
        SEND(from, update_ack);
        if
        :: kind[c] == removal -> SEND(subject[c], close)
        :: else
        fi;
        finish()
    :: what == update_ack ->
        lower();
        if
        :: me == N -> SEND(r, update_ack)
        :: else
        fi
    :: what == close -> lower(); left[me] = NONE; right[me] = NONE
    fi
}

#define TRIGGERS(change) kind[change] != unused && subject[change] == me && fate[change] == waiting
#define RECEIVE(host) atomic { wire[host * HOSTS + me]?what, c, l, r -> from = host; handle() }
#define LOSE(host) atomic { losses > 0 && nempty(wire[host * HOSTS + me]) -> losses--; \
    wire[host * HOSTS + me]?what, c, l, r; \
    printf("%c -> %c  %e of change %d is lost\n", LETTER(host), LETTER(me), what, c + 1) }

proctype Host(byte me) {
    mtype what;
    byte c, l, r, from;
end:
    do
    :: atomic { TRIGGERS(0) && tries[0] == 0 && pending[me] == 0 -> trigger(0) }
    :: atomic { TRIGGERS(1) && tries[1] == 0 && pending[me] == 0 -> trigger(1) }
    :: atomic { TRIGGERS(0) && tries[0] > 0 -> lower(); trigger(0) }
    :: atomic { TRIGGERS(1) && tries[1] > 0 -> lower(); trigger(1) }
    :: RECEIVE(C)
    :: RECEIVE(A)
    :: RECEIVE(B)
    :: RECEIVE(S)
    :: RECEIVE(N)
#if LOSSES > 0
    :: LOSE(C)
    :: LOSE(A)
    :: LOSE(B)
    :: LOSE(S)
    :: LOSE(N)
#endif
    od
}

/* Looks at the hosts when nothing more can happen. */
active proctype Judge() {
    byte h, at, seen;
    timeout;
    d_step {
        for (h : 0 .. HOSTS - 1) {
            assert(pending[h] == 0)
        }
        for (h : 0 .. CHANGES - 1) {
            assert(kind[h] == unused || fate[h] == done || fate[h] == refused) /* none is lost */
        }
        assert(kind[1] == unused || fate[0] == done || fate[1] == done); /* one contender wins */
        at = C;
        for (h : 1 .. HOSTS - 1) { /* the chain hangs together */
            if
            :: at == S -> break
            :: else
            fi;
            assert(right[at] != NONE && left[right[at]] == at);
            seen = seen | (1 << at);
            at = right[at]
        }
        assert(at == S);
        for (h : 0 .. CHANGES - 1) { /* and goes through those it should, and nobody else */
            if
            :: kind[h] == insert -> assert((fate[h] == done) == ((seen >> N) & 1))
            :: kind[h] == removal -> assert((fate[h] == refused) == ((seen >> subject[h]) & 1))
            :: else
            fi
        }
    }
}

init {
    atomic {
        right[C] = A; left[A] = C; right[A] = B; left[B] = A; right[B] = S; left[S] = B;
        kind[0] = FIRST; subject[0] = FIRST_AT;
        kind[1] = SECOND; subject[1] = SECOND_AT;
        run Host(C); run Host(A); run Host(B); run Host(S); run Host(N)
    }
}
