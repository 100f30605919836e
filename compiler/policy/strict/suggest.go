package strict

import "strings"

// DidYouMean returns " (did you mean "X"?)" for the word that is nearest to what
// was found, or "" if none is near.
func DidYouMean(found string, words []string) string {
	best, least := "", tolerance(found)+1
	for _, w := range words {
		if d := distance(strings.ToLower(found), strings.ToLower(w), least); d < least {
			best, least = w, d
		}
	}
	if best == "" {
		return ""
	}
	return " (did you mean " + Quote(best) + "?)"
}

// tolerance is the number of slips that are forgiven in a word: a third of it, and
// at most three.
func tolerance(word string) int { return min(3, (len(word)+1)/3) }

// distance returns the least number of letters to insert, remove, replace or swap
// with their neighbour that turn a into b (optimal string alignment), or limit if it
// is that or more.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	// rows[2] is the row of a[:i], rows[1] and rows[0] are the two before it.
	var rows [3][]int
	for r := range rows {
		rows[r] = make([]int, len(b)+1)
	}
	for j := range rows[2] {
		rows[2][j] = j
	}
	for i := 1; i <= len(a); i++ {
		rows[0], rows[1], rows[2] = rows[1], rows[2], rows[0]
		rows[2][0] = i
		for j := 1; j <= len(b); j++ {
			rows[2][j] = cheapest(rows, a[:i], b[:j])
		}
	}
	return min(rows[2][len(b)], limit)
}

// cheapest returns the distance of a from b, which are not empty, given those of
// their prefixes.
func cheapest(rows [3][]int, a, b string) int {
	i, j := len(a), len(b)
	replace := 1
	if a[i-1] == b[j-1] {
		replace = 0
	}
	least := min(rows[1][j]+1, rows[2][j-1]+1, rows[1][j-1]+replace)
	if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
		least = min(least, rows[0][j-2]+1)
	}
	return least
}
