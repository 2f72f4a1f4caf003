/* What can happen to the hosts of reconfiguration.pml, and what must hold in the end.
 *
 * One process does everything: each of its steps is one host taking one message, or one host's time
 * running out. The network is a set: messages come in any order, LOSSES of them never, DUPS of them
 * twice. CRASHES agents die and are started again. With PATIENT nobody's time runs out.
 */
#ifndef LOSSES
#define LOSSES 0
#endif
#ifndef DUPS
#define DUPS 0
#endif
#ifndef REPEATS
#define REPEATS 0 /* how often an L that is making sends again, though nothing was lost perhaps */
#endif
#ifndef CRASHES
#define CRASHES 0
#endif
#ifdef PATIENT
#define TIME_RUNS_OUT false
#else
#define TIME_RUNS_OUT true
#endif

byte losses = LOSSES;
byte dups = DUPS;
byte repeats = REPEATS;
byte crashes = CRASHES;

/* ------------------------------------------------------------- what can happen, and to whom */

#define TAKE(set, l, name) \
    HAS(set, l) -> what = name; message = true; leg = l; me = to[l]; DROP(set, l)
#define TAKE_BACK(set, l, name) \
    HAS(set, l) -> what = name; message = true; leg = l; me = from[l]; DROP(set, l)
#ifdef BROKEN_SYN_WAITS
#define SYN_WAITS(h, l) (h == new_box[MADE_BY(l)] && phase[h] != out && phase[h] != joined)
#else
#define SYN_WAITS(h, l) (phase[h] == leaving)
#endif
#define ON_LEG(l) \
    :: HAS(syn, l) && !SYN_WAITS(to[l], l) && TAKE(syn, l, UPDATE_SYN); c = MADE_BY(l) \
    :: TAKE(fin, l, UPDATE_FIN); c = NONE \
    :: TAKE_BACK(finack, l, UPDATE_FINACK); c = NONE \
    :: TAKE(ack_0, l, UPDATE_ACK_0); c = NONE
#define FOR_LEG(x, l) \
    :: TAKE(ack_for[x], l, UPDATE_ACK); c = x \
    :: LOCK_NEEDS_NOT_WAIT(x, l) && TAKE(lock_for[x], l, LOCK); c = x
#ifdef BROKEN_ADOPTED_LOCKS
#define LOCK_NEEDS_NOT_WAIT(x, l) \
    (!HAS_PART(to[l]) || lock[to[l]] == x + 1 || left[to[l]] != l)
#else
#define LOCK_NEEDS_NOT_WAIT(x, l) \
    (phase[to[l]] == idle || phase[to[l]] == out || lock[to[l]] == x + 1 || left[to[l]] != l)
#endif

#define TAKE_FOR(set, x, name) \
    HAS(set, x) -> what = name; message = true; c = x; leg = NONE; DROP(set, x)
#define MOVED_BY(x, h) /* leg: here, who says it */ \
    HAS(say_moved[x], h) -> what = MOVED; message = true; c = x; leg = h; me = asker[x]; \
        DROP(say_moved[x], h)
#define FOR_CHANGE(x) \
    :: TAKE_FOR(synack, x, UPDATE_SYNACK); me = from[NEW(x)] \
    :: TAKE_FOR(reject, x, UPDATE_REJECT); me = from[NEW(x)] \
    :: TAKE_FOR(through, x, UPDATE_THROUGH); me = from[NEW(x)] \
    :: near[x] != NONE && !HAS_PART(near[x]) && phase[near[x]] != adopted && \
       TAKE_FOR(request, x, REQUEST); me = near[x] \
    :: TAKE_FOR(say_done, x, DONE); me = asker[x] \
    :: TAKE_FOR(say_refused, x, REJECT); me = asker[x] \
    :: MOVED_BY(x, C) :: MOVED_BY(x, A) :: MOVED_BY(x, B) :: MOVED_BY(x, D) :: MOVED_BY(x, N) \
    :: MOVED_BY(x, M) \
    :: OWN(x, old_box[x] == NONE && fate[x] == waiting && !HAS(begun, x) && \
           (phase[asker[x]] == idle || !IN_CHAIN(asker[x])), begin) \
    :: OWN(x, old_box[x] != NONE && ASKS(x), ask_again)
#define OWN(x, when, step) \
    asker[x] != NONE && when -> what = step; message = false; c = x; me = asker[x]; leg = NONE
/* The first time; elsewhere, when it is no more where it was; or when request or answer is lost. */
#define ASKS(x) (fate[x] == waiting || \
    fate[x] == moved && (!IN_CHAIN(asker[x]) || near[x] != from[left[asker[x]]] || \
                         far[x] != to[right[asker[x]]]) || \
    fate[x] == asked && !HAS(request, x) && !HAS(say_done, x) && \
        !HAS(say_refused, x) && !HAS(say_moved[x], near[x]) && !AT_WORK(x))

#define TIME_OUT(h, when, step) \
    when -> what = step; message = false; me = h; leg = NONE; c = lock[h] - 1
#define TIME_OUT_ON(h, when, step, l) \
    when -> what = step; message = false; me = h; leg = l; c = lock[h] - 1
#define GONE_ASTRAY(l) (!HAS(fin, l) && !HAS(finack, l) && \
    !(phase[to[l]] == leaving && left[to[l]] == l))
#ifdef BROKEN_LIMIT
#define MAY_END(h) (phase[h] == new_in || phase[h] == old_in)
#else
#define MAY_END(h) (phase[h] == old_in && lock[h] <= CHANGES || phase[h] == r_new_in)
#endif
#ifdef BROKEN_NO_ASKING
#define ASKING false
#else
#define ASKING true
#endif
#ifdef BROKEN_LEAVING_LIMIT
#define MAY_GO(h) (phase[h] == leaving)
#else
#define MAY_GO(h) false
#endif
#define ON_HOST(h) \
    :: TIME_OUT(h, TIME_RUNS_OUT && phase[h] == making, give_up) \
    :: TIME_OUT(h, TIME_RUNS_OUT && (MAY_END(h) || MAY_GO(h)), finish_limit) \
    :: TIME_OUT(h, repeats > 0 && phase[h] == making && lock[h] <= CHANGES, repeat); repeats-- \
    :: TIME_OUT_ON(h, (phase[h] == new_in || phase[h] == old_in) && GONE_ASTRAY(spare[h]), \
                   repeat_fin, spare[h]) \
    :: TIME_OUT_ON(h, phase[h] == leaving && GONE_ASTRAY(right[h]), repeat_fin, right[h]) \
    :: TIME_OUT_ON(h, ASKING && CAN_ASK(h), ask, left[h]) \
    :: TIME_OUT_ON(h, ASKING && CAN_ASK_SPARE(h), ask_spare, spare[h]) \
    :: TIME_OUT(h, crashes > 0 && phase[h] != out, crash); crashes--

/* Messages that can never again make a difference are taken out: fewer states, the same runs.
 * They can not since a leg that is out never comes back, and a change begins once. */
#define LOCKED_BY(x) (lock[C] == x + 1 || lock[A] == x + 1 || lock[B] == x + 1 || \
    lock[D] == x + 1 || lock[S] == x + 1 || lock[N] == x + 1 || lock[M] == x + 1)
#define KNOWS(h, l) (left[h] == l || right[h] == l || spare[h] == l)
inline tidy() {
    for (i : 0 .. LEGS - 1) {
        if
        :: HAS(finack, i) && !KNOWS(from[i], i) -> DROP(finack, i)
        :: else
        fi;
        if
        :: HAS(fin, i) && !KNOWS(to[i], i) && !KNOWS(from[i], i) && !HAS(syn, i) -> DROP(fin, i)
        :: else
        fi
    }
    for (i : 0 .. CHANGES - 1) {
        if
        :: HAS(begun, i) && !LOCKED_BY(i) && lock_for[i] == 0 &&
           !HAS(syn, NEW(i)) && !HAS(syn, NEW(i) + 1) ->
            ack_for[i] = 0; DROP(synack, i); DROP(reject, i);
            DROP(syn_seen[A], i); DROP(syn_seen[B], i); DROP(syn_seen[D], i); DROP(syn_seen[S], i)
        :: HAS(begun, i) && phase[from[NEW(i)]] != making -> DROP(synack, i); DROP(reject, i)
        :: else
        fi
    }
}

/* The network: once again what has just been taken. */
inline put_back() {
    if
    :: what == UPDATE_SYN -> PUT(syn, leg)
    :: what == LOCK -> PUT(lock_for[c], leg)
    :: what == UPDATE_ACK -> PUT(ack_for[c], leg)
    :: what == UPDATE_ACK_0 -> PUT(ack_0, leg)
    :: what == UPDATE_FIN -> PUT(fin, leg)
    :: what == UPDATE_FINACK -> PUT(finack, leg)
    :: what == UPDATE_SYNACK -> PUT(synack, c)
    :: what == UPDATE_REJECT -> PUT(reject, c)
    :: what == UPDATE_THROUGH -> PUT(through, c)
    :: what == REQUEST -> PUT(request, c)
    :: what == DONE -> PUT(say_done, c)
    :: what == REJECT -> PUT(say_refused, c)
    :: what == MOVED -> PUT(say_moved[c], leg)
    fi
}

inline tell() {
    printf("%c  %e", LETTER(me), what);
    if
    :: what == MOVED -> printf(" by %c", LETTER(leg))
    :: what != MOVED && leg != NONE -> printf(" %c-%c", LETTER(from[leg]), LETTER(to[leg]))
    :: else
    fi;
    if
    :: c < CHANGES -> printf(" of change %d", c + 1)
    :: else
    fi;
    if
    :: lost -> printf(": lost\n")
    :: else -> printf("\n")
    fi
}

/* --------------------------------------------------------------- when nothing more can happen */

inline judge() {
    d_step {
        for (i : 0 .. HOSTS - 1) {
            assert(lock[i] == 0 && spare[i] == NONE && (phase[i] == idle || phase[i] == out));
            assert(accepts[i] == ((left[i] == NONE -> 0 : BIT(left[i])) |
                                  (right[i] == NONE -> 0 : BIT(right[i]))))
        }
        check_path();
        for (c : 0 .. CHANGES - 1) {
            /* No request is lost. */
            assert(asker[c] == NONE ||
                   fate[c] == done || fate[c] == refused || fate[c] == forgotten);
            /* The chain has changed as was told. */
            assert(fate[c] != done || crashed != 0 || new_box[c] == NONE || IN_CHAIN(new_box[c]) ||
                   old_box[1 - c] == new_box[c]);
            assert(fate[c] != done || old_box[c] == NONE || phase[old_box[c]] == out ||
                   old_box[c] == new_box[1 - c]);
            assert(fate[c] != refused || crashed != 0 || new_box[c] < N || new_box[c] == NONE ||
                   new_box[c] == new_box[1 - c] || phase[new_box[c]] == out)
        }
#ifdef PATIENT
        /* Of two contenders, one wins; unless each wants a box where it is already. */
        assert(fate[0] == done || fate[1] == done || new_box[0] < N && new_box[1] < N)
#endif
#ifdef BOTH
        assert(fate[0] == done && fate[1] == done)
#endif
    }
}

inline place(l, a, b) {
    from[l] = a; to[l] = b; right[a] = l; left[b] = l;
    PUT(accepts[a], l); PUT(accepts[b], l);
    phase[a] = idle; phase[b] = idle
}

#define LET(x, who, goes, comes) asker[x] = who; old_box[x] = goes; new_box[x] = comes
#define ANY_CHANGE(x, spare) \
    if \
    :: LET(x, C, NONE, spare) :: LET(x, A, NONE, spare) :: LET(x, B, NONE, spare) \
    :: LET(x, A, A, NONE) :: LET(x, B, B, NONE) \
    :: LET(x, A, A, spare) :: LET(x, B, B, spare) \
    :: LET(x, C, NONE, B) :: LET(x, B, NONE, A) /* move a box to elsewhere: first it must go */ \
    fi

inline set_up() {
    d_step {
        place(0, C, A);
        place(1, A, B);
#ifdef LONG
        place(2, B, D);
        place(3, D, S)
#else
        place(2, B, S)
#endif
    }
    atomic {
#ifdef ANY
        ANY_CHANGE(0, N);
        ANY_CHANGE(1, N);
        if
        :: new_box[1] == N -> new_box[1] = M
        :: true
        fi
#ifdef LONG
        if /* the second one is further right */
        :: asker[1] == A -> asker[1] = B
        :: asker[1] == B -> asker[1] = D
        :: true
        fi;
        if
        :: old_box[1] != NONE -> old_box[1] = asker[1]
        :: else
        fi
#endif
#else
        LET(0, ASKER_1, OLD_1, NEW_1);
        LET(1, ASKER_2, OLD_2, NEW_2)
#endif
    }
}

active proctype World() {
    set_up();
    do
    :: atomic {
        if
        ON_LEG(0) ON_LEG(1) ON_LEG(2) ON_LEG(3) ON_LEG(4) ON_LEG(5) ON_LEG(6) ON_LEG(7)
        FOR_LEG(0, 0) FOR_LEG(0, 1) FOR_LEG(0, 2) FOR_LEG(0, 3)
        FOR_LEG(0, 4) FOR_LEG(0, 5) FOR_LEG(0, 6) FOR_LEG(0, 7)
        FOR_LEG(1, 0) FOR_LEG(1, 1) FOR_LEG(1, 2) FOR_LEG(1, 3)
        FOR_LEG(1, 4) FOR_LEG(1, 5) FOR_LEG(1, 6) FOR_LEG(1, 7)
        FOR_CHANGE(0) FOR_CHANGE(1)
        ON_HOST(C) ON_HOST(A) ON_HOST(B) ON_HOST(D) ON_HOST(S) ON_HOST(N) ON_HOST(M)
        fi;
        if
        :: lost = false
        :: message && losses > 0 -> losses--; lost = true
        :: message && dups > 0 -> dups--; lost = false; put_back()
        fi;
        d_step {
            tell();
            if
            :: lost
            :: else -> handle(); check_path()
            fi;
            tidy();
            what = 0; c = 0; leg = 0; me = 0; at = 0; i = 0; message = 0; lost = 0
        }
    }
    :: timeout -> break
    od;
    judge()
}
