/* The rules of docs/reconfiguration.md, mended as docs/model.md says, on the chain
 *
 *      C ── A ── B ── D ── S        C client, S server, A B D middleboxes (D only with LONG)
 *           N         M             N and M spares, in no chain yet
 *
 * and two changes that are asked for at once. What is modelled, what is not, and how to read a
 * counterexample is told in docs/model.md. Here are the hosts and their rules; world.pml has what
 * can happen to them, and what must hold when nothing more can.
 *
 * Macros named BROKEN_... each break one rule; tests/model/variants.py says what spin finds then.
 */
#define C 0
#define A 1
#define B 2
#define D 3
#define S 4
#define N 5
#define M 6
#define HOSTS 7
#define NONE 15
#define LETTER(h) (h == C -> 'C' : (h == A -> 'A' : (h == B -> 'B' : (h == D -> 'D' : \
    (h == S -> 'S' : (h == N -> 'N' : 'M'))))))

/* Legs, each with its two ends. The first are those of the chain; each change may make two. */
#define FIRST_LEGS 4
#define CHANGES 2
#define LEGS 8
#define NEW(c) (FIRST_LEGS + 2 * (c))
#define LAST(c) (new_box[c] == NONE -> NEW(c) : NEW(c) + 1) /* the new leg that ends at R */
#define MADE_BY(leg) ((leg - FIRST_LEGS) / 2)
byte from[LEGS];
byte to[LEGS];

/* A change: who asks, what goes, what comes. An insertion is asked for at L ("after me"), all else
 * by the box that goes ("replace me"), which asks its left neighbour to be L. */
byte asker[CHANGES] = NONE;
byte old_box[CHANGES] = NONE;
byte new_box[CHANGES] = NONE;
byte far[CHANGES]; /* R, as the messages name it */
byte near[CHANGES] = NONE; /* whom the asker has asked: L, perhaps */
byte begun; /* by change: it has been tried */

mtype = { waiting, asked, moved, refused, done, forgotten };
mtype fate[CHANGES] = waiting; /* as the asker knows it */
mtype outcome[CHANGES] = waiting; /* as L remembers it */

/* A host. It sends leftward on `left`, rightward on `right`, and accepts all legs of `accepts`.
 * `spare` is the one more it has in a change: beside right at L, beside left at R. */
mtype = { out, idle, making, new_in, old_in, r_locked, r_ready, r_new_in, r_found, locked, joined,
          adopted, leaving };
mtype phase[HOSTS] = out;
byte lock[HOSTS]; /* `pending`: the change it is part of, from 1; 0: none */
byte left[HOSTS] = NONE;
byte right[HOSTS] = NONE;
byte spare[HOSTS] = NONE;
byte accepts[HOSTS];
byte syn_seen[HOSTS]; /* by change: UPDATE-SYN came before LOCK */

/* The network: who is on the way, by leg or by change. LOCK and ACK name leg and change. */
byte syn, fin, finack, ack_0;
byte lock_for[CHANGES], ack_for[CHANGES];
byte synack, reject, through, request, say_done, say_refused;
byte say_moved[CHANGES]; /* by who says it */

byte crashed; /* hosts, and the changes they forgot: what nobody can be blamed for */

mtype = { UPDATE_SYN, LOCK, UPDATE_ACK, UPDATE_ACK_0, UPDATE_FIN, UPDATE_FINACK, UPDATE_SYNACK,
          UPDATE_REJECT, UPDATE_THROUGH, REQUEST, DONE, REJECT, MOVED };
mtype = { begin, give_up, finish_limit, repeat, repeat_fin, ask, ask_spare, crash, ask_again };

/* The step under way; all are 0 between two steps. */
mtype what;
byte c, leg, me, at, i;
bool message, lost;

#define BIT(x) (1 << (x))
#define HAS(set, x) (((set) >> (x)) & 1)
#define PUT(set, x) set = set | BIT(x)
#define DROP(set, x) set = set & ~BIT(x)

#define IN_CHAIN(h) (phase[h] != out && phase[h] != leaving)
#define HAS_PART(h) (phase[h] != out && phase[h] != idle && phase[h] != adopted)
#define AT_L(h) (phase[h] == making || phase[h] == new_in || phase[h] == old_in)
#define AT_WORK(change) (lock[C] == change + 1 && AT_L(C) || lock[A] == change + 1 && AT_L(A) || \
    lock[B] == change + 1 && AT_L(B) || lock[D] == change + 1 && AT_L(D) || \
    lock[N] == change + 1 && AT_L(N) || lock[M] == change + 1 && AT_L(M))

/* ------------------------------------------------------------------ what must hold at all times */

/* Packets get through, both ways: each host accepts the leg on which its neighbour sends. */
inline check_path() {
    at = C;
    for (i : 1 .. HOSTS) {
        if
        :: at == S -> break
        :: else
        fi;
        assert(right[at] != NONE && HAS(accepts[to[right[at]]], right[at]));
        at = to[right[at]]
    }
    assert(at == S);
    for (i : 1 .. HOSTS) {
        if
        :: at == C -> break
        :: else
        fi;
        assert(left[at] != NONE && HAS(accepts[from[left[at]]], left[at]));
        at = from[left[at]]
    }
    assert(at == C)
}

/* ----------------------------------------------------------------------------- steps of a host */

inline unlock() {
    lock[me] = 0;
    spare[me] = NONE;
    phase[me] = idle
}

/* L is through with a change. */
inline end(how) {
    outcome[c] = how;
    if
    :: asker[c] == me -> fate[c] = how
    :: asker[c] != me && how == done -> PUT(say_done, c)
    :: else -> PUT(say_refused, c)
    fi
}

inline begin_change() {
    PUT(begun, c);
    lock[me] = c + 1;
    phase[me] = making;
    spare[me] = NEW(c);
    if
    :: old_box[c] == NONE -> far[c] = to[right[me]]
    :: else
    fi;
    from[NEW(c)] = me;
    if
    :: new_box[c] == NONE -> to[NEW(c)] = far[c]
    :: else -> to[NEW(c)] = new_box[c]; from[NEW(c) + 1] = new_box[c]; to[NEW(c) + 1] = far[c]
    fi;
    PUT(accepts[me], NEW(c));
    PUT(syn, NEW(c));
    PUT(lock_for[c], right[me])
}

inline undo() {
    phase[me] = old_in;
    PUT(ack_for[c], right[me]);
    PUT(fin, spare[me])
}

inline commit() {
    /* No overlap: all who are concerned are part of this change, and so of no other. */
    assert((lock[far[c]] == c + 1 || HAS(crashed, far[c])) &&
           (old_box[c] == NONE || lock[old_box[c]] == c + 1 || HAS(crashed, old_box[c])));
    leg = right[me];
    right[me] = spare[me];
    spare[me] = leg;
    phase[me] = new_in;
#ifdef BROKEN_CLOSE_EARLY
    DROP(accepts[me], leg);
#endif
    PUT(ack_for[c], right[me]);
    PUT(fin, leg)
}

/* R has both: LOCK and UPDATE-SYN. */
inline ready() {
    spare[me] = LAST(c);
    PUT(accepts[me], spare[me]);
    phase[me] = r_ready;
#ifdef BROKEN_SWITCH_EARLY
    i = left[me]; left[me] = spare[me]; spare[me] = i;
#endif
    PUT(synack, c)
}

inline on_syn() {
    if
    :: me == new_box[c] && leg == NEW(c) ->
        if
        :: phase[me] == out ->
            phase[me] = joined; lock[me] = c + 1;
            left[me] = leg; right[me] = leg + 1;
            accepts[me] = BIT(leg) | BIT(leg + 1);
            PUT(syn, leg + 1)
        :: phase[me] == joined && left[me] == leg -> PUT(syn, leg + 1)
        :: phase[me] != out && left[me] != leg -> PUT(reject, c)
        :: else
        fi
    :: else ->
        if
        :: lock[me] == c + 1 && phase[me] == r_locked -> ready()
        :: lock[me] == c + 1 && phase[me] == r_ready -> PUT(synack, c)
#ifdef BROKEN_NO_LOCK
        :: phase[me] == idle -> lock[me] = c + 1; ready()
#endif
        :: else -> PUT(syn_seen[me], c)
        fi
    fi
}

inline on_lock() {
    if
    :: lock[me] == c + 1 && phase[me] == locked -> PUT(lock_for[c], right[me])
    :: lock[me] == c + 1 && phase[me] == r_ready -> PUT(synack, c)
    :: lock[me] == c + 1 && phase[me] != locked && phase[me] != r_ready
    :: lock[me] != c + 1 && left[me] != leg -> PUT(reject, c) /* the chain has changed */
    :: lock[me] != c + 1 && left[me] == leg ->
        if
        :: me == old_box[c] && to[right[me]] == far[c] ->
            lock[me] = c + 1; phase[me] = locked; PUT(lock_for[c], right[me])
        :: me == far[c] ->
            lock[me] = c + 1; phase[me] = r_locked;
            if
            :: HAS(syn_seen[me], c) -> DROP(syn_seen[me], c); ready()
            :: else
            fi
        :: else -> PUT(reject, c)
        fi
    fi
}

inline on_ack() {
    if
    :: lock[me] == c + 1 && phase[me] == r_ready && (leg == spare[me] || leg == left[me]) ->
        i = left[me] + spare[me] - leg; /* the other one is out */
        left[me] = leg;
        if
        :: leg == LAST(c) -> spare[me] = i; phase[me] = r_new_in
        :: else -> DROP(accepts[me], i); PUT(finack, i); unlock()
        fi
    :: lock[me] == c + 1 && phase[me] == r_locked && leg == left[me] -> unlock()
    :: lock[me] == c + 1 && (phase[me] == locked || phase[me] == joined) && leg == left[me] ->
        unlock(); PUT(ack_for[c], right[me])
    :: else
    fi
}

inline on_fin() {
    if
    :: leg == spare[me] &&
       (phase[me] == r_ready || phase[me] == r_new_in || phase[me] == r_found) ->
        DROP(accepts[me], leg); PUT(finack, leg); unlock()
    :: leg == left[me] && (phase[me] == r_ready || phase[me] == r_found) ->
        left[me] = spare[me]; DROP(accepts[me], leg); PUT(finack, leg); unlock()
    :: leg == left[me] && phase[me] == leaving -> PUT(fin, right[me])
    :: leg == left[me] && phase[me] != r_ready && phase[me] != r_found && phase[me] != leaving ->
        assert(me != S);
        if
        :: phase[me] == making -> /* its own change, which has moved nothing yet, is over */
            c = lock[me] - 1;
            PUT(fin, spare[me]);
            end(refused)
        :: else
        fi;
        phase[me] = leaving;
        PUT(fin, right[me])
    :: else -> /* unknown here, so it is gone */
        PUT(finack, leg);
        if
        :: leg >= FIRST_LEGS -> DROP(syn_seen[me], MADE_BY(leg))
        :: else
        fi
    fi
}

inline go() {
    PUT(finack, left[me]);
    left[me] = NONE; right[me] = NONE; spare[me] = NONE;
    accepts[me] = 0; lock[me] = 0; phase[me] = out
}

inline on_finack() {
    if
    :: phase[me] == new_in && leg == spare[me] ->
        c = lock[me] - 1;
        DROP(accepts[me], leg); unlock();
        if
        :: c < CHANGES -> end(done)
        :: else
        fi
    :: phase[me] == old_in && leg == spare[me] ->
        c = lock[me] - 1;
        DROP(accepts[me], leg); unlock();
        if
        :: c < CHANGES -> end(refused)
        :: else
        fi
    :: phase[me] == leaving && leg == right[me] -> go()
    :: else
    fi
}

inline on_finish_limit() {
    c = lock[me] - 1;
    if
    :: phase[me] == r_new_in -> PUT(through, c)
    :: else
    fi;
    DROP(accepts[me], spare[me]);
    if
    :: phase[me] == new_in -> i = 1
    :: phase[me] == old_in -> i = 2
    :: else -> i = 0
    fi;
    unlock();
    if
    :: c < CHANGES && i == 1 -> end(done)
    :: c < CHANGES && i == 2 -> end(refused)
    :: else
    fi
}

/* A request at the one who should be L; it has waited there while that one was busy. */
inline on_request() {
    if
    :: outcome[c] == done -> PUT(say_done, c)
    :: outcome[c] == refused -> PUT(say_refused, c)
    :: outcome[c] == waiting && IN_CHAIN(me) && to[right[me]] == old_box[c] ->
        if
        :: !HAS(begun, c) -> begin_change()
        :: else -> PUT(say_refused, c) /* a restarted L has forgotten how it went */
        fi
    :: else -> PUT(say_moved[c], me)
    fi
}

/* `me` asks the left end of `leg` (or hears from it without asking). Silence is no step. */
#define ASKED_FOR(h) (lock[h] == 0 || lock[h] > CHANGES -> CHANGES : lock[h] - 1)
#ifdef BROKEN_ADOPTED_ANSWERS
#define FORGETFUL(h) false
#else
#define FORGETFUL(h) (phase[h] == adopted)
#endif
#define UNDECIDED(h, l, change) \
    ((l == right[h] || l == spare[h]) && (FORGETFUL(h) || phase[h] == joined || \
     (phase[h] == making || phase[h] == locked) && (change == CHANGES || lock[h] == change + 1)))
#define IS_IN(h, l) (IN_CHAIN(h) && l == right[h])
#define ON_WAY(h, l) \
    (HAS(fin, l) || (ASKED_FOR(h) == CHANGES -> HAS(ack_0, l) : \
        HAS(ack_for[ASKED_FOR(h) % CHANGES], l)))
#define UNTOLD(h) \
    (phase[h] == locked || phase[h] == joined || phase[h] == adopted && h != C || \
     phase[h] == r_locked || phase[h] == r_ready || phase[h] == r_found)
#define CAN_ASK(h) UNTOLD(h) && !UNDECIDED(from[left[h]], left[h], ASKED_FOR(h)) && \
    !ON_WAY(h, left[h]) && !(phase[h] == r_found && IS_IN(from[left[h]], left[h]))
#define CAN_ASK_SPARE(h) (phase[h] == r_ready || phase[h] == r_new_in || phase[h] == r_found) && \
    !UNDECIDED(from[spare[h]], spare[h], ASKED_FOR(h)) && !ON_WAY(h, spare[h]) && \
    !(phase[h] == r_found && IS_IN(from[spare[h]], spare[h]))

inline answer() {
    if
    :: !IS_IN(from[leg], leg) -> PUT(fin, leg)
    :: IS_IN(from[leg], leg) && ASKED_FOR(me) == CHANGES -> PUT(ack_0, leg)
    :: else -> PUT(ack_for[ASKED_FOR(me)], leg)
    fi
}

/* The agent dies and is started again: the legs are in the kernel, all else is forgotten. */
inline on_crash() {
    PUT(crashed, me);
    syn_seen[me] = 0;
    for (i : 0 .. CHANGES - 1) {
        if
        :: asker[i] == me && fate[i] != done && fate[i] != refused -> fate[i] = forgotten
        :: else
        fi;
        if
        :: lock[me] == i + 1 && AT_L(me) && fate[i] != forgotten -> outcome[i] = waiting
        :: else
        fi
    }
    if
    :: phase[me] == making -> phase[me] = old_in; lock[me] = CHANGES + 1; PUT(fin, spare[me])
    :: phase[me] == new_in || phase[me] == old_in -> phase[me] = old_in; lock[me] = CHANGES + 1
    :: phase[me] == r_ready || phase[me] == r_new_in -> phase[me] = r_found; lock[me] = CHANGES + 1
    :: phase[me] == r_locked && me == S -> unlock()
    :: phase[me] == idle && (me == C || me == S)
    :: else -> lock[me] = 0; phase[me] = adopted
    fi
}

inline handle() {
    if
    :: what == begin ->
        if
        :: IN_CHAIN(me) -> begin_change()
        :: else -> fate[c] = refused
        fi
    :: what == ask_again ->
        if
        :: IN_CHAIN(me) ->
            near[c] = from[left[me]]; far[c] = to[right[me]];
            fate[c] = asked; PUT(request, c)
        :: !IN_CHAIN(me) && HAS(begun, c) -> fate[c] = done /* it has gone, as it wished */
        :: else -> fate[c] = refused
        fi
    :: what == REQUEST -> on_request()
    :: what == DONE && fate[c] != forgotten -> fate[c] = done
    :: what == REJECT && fate[c] == asked -> fate[c] = refused
#ifdef BROKEN_ANY_ANSWER
    :: what == MOVED && fate[c] == asked -> fate[c] = moved
#else
    :: what == MOVED && fate[c] == asked && leg == near[c] -> fate[c] = moved
#endif
    :: what == UPDATE_SYN -> on_syn()
    :: what == LOCK -> on_lock()
    :: what == UPDATE_SYNACK && phase[me] == making && lock[me] == c + 1 -> commit()
    :: (what == UPDATE_REJECT || what == give_up) && phase[me] == making && lock[me] == c + 1 ->
        undo()
    :: what == UPDATE_ACK -> on_ack()
    :: what == UPDATE_ACK_0 && phase[me] == adopted && leg == left[me] -> unlock()
    :: what == UPDATE_FIN -> on_fin()
    :: what == UPDATE_THROUGH && phase[me] == new_in && lock[me] == c + 1 ->
        leg = spare[me]; on_finack()
    :: what == UPDATE_FINACK -> on_finack()
    :: what == finish_limit && phase[me] != leaving -> on_finish_limit()
    :: what == finish_limit && phase[me] == leaving -> go()
    :: what == repeat -> PUT(syn, NEW(c)); PUT(lock_for[c], right[me])
    :: what == repeat_fin -> PUT(fin, leg)
    :: what == ask || what == ask_spare -> answer()
    :: what == crash -> on_crash()
    :: else
    fi
}

#include "world.pml"
