package watch

// match reports whether a cgroup's name matches a pattern in which * stands for
// any bytes and ? for one. No other byte has a meaning of its own: systemd's names
// have backslashes in them.
func match(pattern, name string) bool {
	p, n := 0, 0
	star, resume := -1, 0 // the last *, and where in name to go on after it
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, resume = p, n
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == name[n]):
			p++
			n++
		case star >= 0: // let the last * take one byte more
			resume++
			p, n = star+1, resume
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
